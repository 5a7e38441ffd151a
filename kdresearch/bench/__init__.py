"""A run as a library: what it is (``plan``), what it does (``run``), and what it leaves (``schema``, ``record``)."""
