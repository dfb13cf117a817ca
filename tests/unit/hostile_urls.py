"""Addresses of pictures that no server may ask for."""

from __future__ import annotations

HOSTILE = [
    "https://127.0.0.1/a.png", "https://[::1]/a.png", "https://[::ffff:127.0.0.1]/", "https://0/",
    "https://0x7f000001/", "https://2130706433/", "https://0177.0.0.1/", "https://127.1/",
    "https://localhost/", "https://localhost./", "https://LOCALHOST/", "https://169.254.169.254/",
    "https://metadata.google.internal/", "https://10.0.0.1/", "https://172.16.0.1/",
    "https://192.168.0.1/", "https://100.64.0.1/", "https://[fd00::1]/", "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/", "https://[2002:7f00:1::]/", "https://[64:ff9b::7f00:1]/",
    "https://allowed.example@127.0.0.1/", "https://allowed.example\\@127.0.0.1/",
    "https://127.0.0.1\\@allowed.example/", "https://allowed.example:443@127.0.0.1/",
    "https://allowed.example#@127.0.0.1/\\..", "https://127.0.0.1#@allowed.example/",
    "https://127.0.0.1?@allowed.example/", "https://127.0.0.1/\\@allowed.example",
    "https://allowed.example.evil.example/", "https://notallowed.example/",
    "https://evil.example/allowed.example", "https://allowed.example:8443/",
    "https://allowed.example:99999/", "https://allowed.example:-1/", "https://allowed.example:x/",
    "https:///127.0.0.1/", "https://", "https:allowed.example", "https:/allowed.example",
    "https://allowed.example\r\nHost: 127.0.0.1/", "https://allowed.example/ x", "https://%31/",
    "https://allowed%2eexample/", "https://\u24d0llowed.example/", "https://allowed\u3002example/",
    "https://[", "https://[::1", "https://]/", "https://allowed.example/\x00", "https://.example/",
    "http://allowed.example/", "HTTP://allowed.example/", "file:///etc/passwd",
    "file://localhost/etc/passwd", "FILE:/etc/passwd", "/etc/passwd", "%2e%2e/etc/passwd",
    "../../etc/passwd", "ftp://allowed.example/", "gopher://127.0.0.1:70/_x", "//allowed.example/",
    "jar:https://allowed.example!/", "dict://127.0.0.1:11211/", "data:text/html,<b>",
    "https://allowed.example/" + "a" * 3000,
]  # fmt: skip
