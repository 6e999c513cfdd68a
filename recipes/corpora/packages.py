"""Getting a package with the tool that it belongs to, unpacking it, and checking what its licence file says."""

from __future__ import annotations

import dataclasses
import fnmatch
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from ossia.core.config import build_config
from ossia.core.errors import DatasetError, InvalidInputError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A package and what to take from it; packages.toml says what each field means."""

    name: str
    kind: str
    source: str
    license: str
    proof: str
    license_file: str | None = None
    license_package: str | None = None
    converter: str | None = None
    pages: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("apt", "pip", "npm"):
            raise InvalidInputError(f"{self.name}: kind is apt, pip or npm, got {self.kind!r}", param="kind")
        if (self.converter is None) == (not self.pages):
            raise InvalidInputError(f"{self.name}: give a converter or pages, one of them", param="converter")
        if self.kind != "apt" and self.license_file is None:
            raise InvalidInputError(f"{self.name}: say where its license_file is", param="license_file")

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return self.name.lstrip("@").replace("/", "-")


def load_packages(path: Path) -> list[Package]:
    """Read packages.toml."""
    raw: Mapping[str, list[object]] = tomllib.loads(path.read_text(encoding="utf-8"))
    return [build_config(Package, table, section="packages") for table in raw["packages"]]


def download(name: str, kind: str, *, folder: Path) -> Path:
    """Bring the archive of a package into a folder, if it is not there.

    Raises:
        DatasetError: its tool is absent, or does not find it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    patterns = {
        "apt": [f"{name}_*.deb"],
        "pip": [f"{name.replace('-', '_')}-*.whl", f"{name}-*.tar.gz", f"{name.replace('-', '_')}-*.tar.gz"],
        "npm": [f"{name.lstrip('@').replace('/', '-')}-[0-9]*.tgz"],
    }[kind]
    command = {
        "apt": ["apt-get", "download", name],
        "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", name],
        "npm": ["npm", "pack", "--silent", name],
    }[kind]
    if not _found(folder, patterns):
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)  # noqa: S603
        except FileNotFoundError as error:
            raise DatasetError(f"{command[0]} is not installed") from error
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip() or "no message").splitlines()[-1]
            raise DatasetError(f"{' '.join(command)} failed: {last}") from error
    found = _found(folder, patterns)
    if not found:
        raise DatasetError(f"{' '.join(command)} left no file like {patterns[0]}")
    return found[-1]


def unpack(archive: Path, *, folder: Path, parts: tuple[str, ...] = ()) -> None:
    """Unpack a .deb, .whl, .tgz or .tar.gz into a folder, which is made anew.

    Args:
        archive: the file.
        folder: where to.
        parts: of a .tgz, unpack what matches one of these only; everything by default.

    Raises:
        DatasetError: it is damaged; the archive is deleted, so that the next run gets it again.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        if archive.suffix == ".deb":
            subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True, capture_output=True)  # noqa: S603, S607
        elif archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)  # noqa: S202, zipfile keeps members within the folder
        else:
            with tarfile.open(archive) as file:
                wanted = [
                    member for member in file if not parts or any(fnmatch.fnmatch(member.name, part) for part in parts)
                ]
                file.extractall(folder, members=wanted, filter="data")  # the filter refuses what leaves the folder
    except FileNotFoundError as error:
        raise DatasetError("dpkg-deb is not installed") from error
    except (subprocess.CalledProcessError, zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        archive.unlink(missing_ok=True)
        raise DatasetError(f"{archive.name} is damaged: {error}") from error


def check_license(package: Package, *, folder: Path) -> None:
    """Compare what the package's licence file says with what packages.toml says of it.

    Args:
        package: what is looked at.
        folder: where the package that has its licence file is unpacked.

    Raises:
        DatasetError: there is no such file, or it lacks the words.
    """
    pattern = package.license_file or f"usr/share/doc/{package.license_package or package.name}/copyright"
    files = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
    if not files:
        raise DatasetError(f"has no licence file {pattern}, so its text is not used")
    if package.proof not in files[0].read_text(encoding="utf-8", errors="replace"):
        raise DatasetError(f"its licence file {pattern} no longer says {package.proof!r}, so its text is not used")


def copy_pages(package: Package, *, unpacked: Path, folder: Path) -> int:
    """Copy the pages to take into a folder.

    Returns:
        How many.

    Raises:
        DatasetError: there is not one.
    """
    pages = sorted({page for pattern in package.pages for page in unpacked.glob(pattern) if page.is_file()})
    count = 0
    for page in pages:
        name = page.relative_to(unpacked).as_posix()
        if page.is_symlink() or any(fnmatch.fnmatchcase(f"/{name}", pattern) for pattern in package.leave_out):
            continue
        target = folder / name.removeprefix("usr/share/doc/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, target)
        count += 1
    if not count:
        raise DatasetError(f"has no page like {package.pages[0]}")
    return count


def _found(folder: Path, patterns: list[str]) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.glob(pattern))
