"""What models read: chat templates, the verbalizer's prompts, special tokens that stay text."""
