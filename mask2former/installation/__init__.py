"""Installation of PyTorch, detectron2, the other libraries and the compiled op, in a checkout or an installed package.

It runs before anything is installed: standard library only, Python 3.10 to 3.13, and nothing of the rest of this
package. tools/install.py, tools/build_ops.py and setup.py load it as a package of its own.
"""
