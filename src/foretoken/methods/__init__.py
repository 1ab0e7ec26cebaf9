"""Learning methods: what is trained on which windows, and how it acts. Systems are settings of them."""
