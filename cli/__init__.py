"""The two command lines, ``cvgl-data`` and ``cvgl-train``."""

if __name__ != "cvgl_cli":
    raise ModuleNotFoundError("this folder is installed as 'cvgl_cli'; import that name")
