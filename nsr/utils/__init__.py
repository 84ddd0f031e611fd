"""Small helpers that every layer may import: errors, atomic files, thread policy."""
