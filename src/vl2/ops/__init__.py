"""Pure tensor functions; each fast path stands beside its plain `*_ref` twin."""
