"""Rows: read or drawn, turned into Gemma's turns, tokenized once, ordered, and collated into batches."""
