"""Transfer of bytes between devices and files: staged, checksummed, multi-threaded, in bounded memory.

`transfer` carries out a whole save in the background; `pipeline` moves bytes for readers and for BundleWriter;
`accelerators` has the streams, events and pinned memory of devices; `uploads` fills tensors on devices; `threads` lets
threads wait for each other safely.
May use: torch, threads, streams of devices, storage, `format.crc32c`.
Must not: know about checkpoint keys or file layouts.
"""
