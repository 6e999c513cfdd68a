from ossia.engine.block_hash import block_hash, root_hash


def test_hashes_depend_on_salt_parent_and_every_token() -> None:
    root = root_hash("")
    names = {
        root,
        root_hash("a"),
        root_hash("\ud800"),
        block_hash(root, [1, 2]),
        block_hash(root, [2, 1]),
        block_hash(root, [1, 258]),
        block_hash(root_hash("a"), [1, 2]),
        block_hash(block_hash(root, [1, 2]), [1, 2]),
    }
    assert len(names) == 8
    assert block_hash(root, [1, 2]) == block_hash(root, (1, 2))
