"""Blobs → manifest → head: the only writer of heads.

The order of writes is the whole protocol (docs/DESIGN.md, "Write order"): what a head names was written
before the head was moved, and a head moves only from the version that its writer read. Nothing here takes a
lock or a lease; a writer that died left garbage, never damage.
"""
