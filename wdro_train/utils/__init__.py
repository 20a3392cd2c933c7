"""Tools that know nothing of attacks or training: errors, ranks, files, tables, and what a batch has to be."""
