"""Search while acting: plain objects that ask a model what sequences of actions would bring."""
