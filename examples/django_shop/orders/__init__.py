"""Orders, kept in MongoDB, and what follows from them."""
