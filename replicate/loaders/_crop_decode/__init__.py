"""C sources of the crop decoder and the build script."""
