"""What is hostile, exhausted, interrupted or unusual. `make test` runs a part of it, `make torture` all."""
