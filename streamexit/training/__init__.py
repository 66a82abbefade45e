"""Making networks: data sets, losses, the training loop. The running node never imports this."""
