"""The programs of `bpf/` on other kernels: `make kernels` boots each under qemu and tries them."""
