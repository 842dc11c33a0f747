#!/usr/bin/env bash
# Training in small: tiny random models, Debian's PyTorch. In: the tiny model, the release programs.
# Out: checks that the losses fall, that the exported adapter loads in the C programs, and that C and PyTorch captions agree.
. "$(dirname "$0")/lib.sh"
check "the smoke run" env OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 -m train.smoke --model "$TINY" --program "$BUILD/tokenflex"
