"""`report.html` of a bundle: what it is, whether it computes what PyTorch computes, and what it costs."""
