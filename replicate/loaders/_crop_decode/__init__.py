"""C sources of the crop decoder and the helper that compiles them."""
