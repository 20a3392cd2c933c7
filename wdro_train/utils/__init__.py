"""What every floor may use: errors, ranks, files, tables."""
