"""Text encoder + generator + decoder, put together from one config."""
