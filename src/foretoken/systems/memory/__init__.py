"""Systems that learn online, in environments which must be remembered."""
