"""The database of judgements, and every change and question that is put to it."""
