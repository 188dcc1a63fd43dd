"""Files: the safetensors format, checkpoints of one file or several, the configuration in them, and writing them whole."""
