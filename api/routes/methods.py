"""Methods and recipes of the catalog."""

from fastapi import APIRouter

from api.dependencies import CallerDep, PageDep
from api.schemas import lists
from api.schemas import methods as bodies
from models_registry import catalog, errors
from models_registry.persistence import paging

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/methods", operation_id="list_methods")
def index(wanted: PageDep) -> lists.ListRead[bodies.MethodRead]:
    """List the methods, in the catalog's order."""
    page = paging.cut(list(catalog.load().methods.values()), wanted=wanted)
    return lists.ListRead.of(page, bodies.MethodRead.model_validate)


@router.get("/methods/{name}", operation_id="get_method")
def show(name: str, _caller: CallerDep) -> bodies.MethodRead:
    """Return one method with the schema of its hyper-parameters."""
    methods = catalog.load().methods
    if name not in methods:
        hint = catalog.nearest(name, methods)
        raise errors.NotFound(f"no method is called {name!r}{hint}")
    return bodies.MethodRead.model_validate(methods[name])


@router.get("/recipes", operation_id="list_recipes")
def recipes(_caller: CallerDep) -> bodies.RecipesRead:
    """Return every recipe in full, and the schema of `training`."""
    known = catalog.load()
    return bodies.RecipesRead(
        data=[
            bodies.RecipeRead(name=name, training=training)
            for name, training in known.recipes.items()
        ],
        training_schema=known.training_schema,
    )
