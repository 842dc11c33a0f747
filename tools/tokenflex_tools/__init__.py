"""Model set-up and the PyTorch reference of tokenflex. Each module says what it reads and what it gives."""
