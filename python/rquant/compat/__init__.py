"""Other libraries' calls on rquant: change the import, keep the code."""
