"""EXIF, XMP and IPTC: read from uploads, corrected, and written into outputs."""
