"""One module per format, each with the names of `atomloom.readers.base.Reader`."""
