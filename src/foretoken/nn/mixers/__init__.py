"""How a token sees earlier tokens: one file per mechanism, each with a naive reference."""
