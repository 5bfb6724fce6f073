"""The kernel data plane: programs in the kernel that watch links, divert data and filter."""
