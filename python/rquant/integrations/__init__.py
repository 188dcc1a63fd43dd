"""Plug-ins to other libraries, one subpackage each; none is imported before that library or a name of it is used."""
