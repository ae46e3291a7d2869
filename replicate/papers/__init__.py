"""What only one paper needs: the tables and figures of its notebook, and the numbers that it prints."""
