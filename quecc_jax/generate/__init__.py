"""From prompts to answers: sampling, cached decoding, streaming text, and reuse of what repeats."""
