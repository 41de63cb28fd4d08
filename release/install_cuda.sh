#!/usr/bin/env bash
# Installs nvcc and the static CUDA runtime in a manylinux_2_28 image (AlmaLinux 8), and ccache, so that
# kernels are compiled once for all versions of Python. 12.8 runs on every driver from 525 on
# (minor-version compatibility) and knows Blackwell; 13 would ask for driver 580.
set -euo pipefail
case "$(uname -m)" in
  x86_64) repository=x86_64 ;;
  aarch64) repository=sbsa ;;
  *) echo "install_cuda.sh: there is no CUDA for $(uname -m)" >&2; exit 1 ;;
esac
dnf install -y dnf-plugins-core epel-release
dnf config-manager --add-repo \
  "https://developer.download.nvidia.com/compute/cuda/repos/rhel8/$repository/cuda-rhel8.repo"
dnf install -y cuda-nvcc-12-8 cuda-cudart-devel-12-8 ccache
