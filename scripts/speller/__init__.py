"""What the scripts that make the bundled speller share: words and tokenizer, prompts, measurements, card."""
