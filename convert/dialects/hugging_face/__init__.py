"""What Hugging Face's names and settings need beside `hf`: what does not fit is kept, said or refused here."""
