"""Systems: parts that are trained one after the other and draw together."""
