"""Selection of web text that looks like the in-domain seed (paper, section 3.1): train, score, choose by token budget."""
