"""Files of conversations in OpenAI's form, and batches of them."""
