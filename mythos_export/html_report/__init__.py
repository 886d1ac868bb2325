"""`report.html` of a bundle: what it is, that it computes what PyTorch computes, and what it costs, in pictures."""
