"""The same training steps by other libraries, one file each, and by plain PyTorch; none of these needs metafew."""
