"""What is imported at every start of autofit: a reference, and nothing heavy."""

from autofit.hookspecs import BackendRef, hookimpl


@hookimpl
def autofit_register_backends():
    return [BackendRef("hearth", "plan a hearth-serve command", "autofit_hearth.backend:Hearth", ("hearth-serve",))]
