"""Methods and recipes of the catalog."""

from fastapi import APIRouter

from api.dependencies import CallerDep, PageDep, SessionsDep
from api.schemas import lists
from api.schemas import methods as bodies
from models_registry import catalog, errors
from models_registry.jobs import ranking
from models_registry.persistence import paging

router = APIRouter(prefix="/v1", tags=["catalog"])


@router.get("/methods", operation_id="list_methods")
def index(wanted: PageDep) -> lists.ListRead[bodies.MethodRead]:
    """List the methods, in the catalog's order."""
    page = paging.cut(list(catalog.load().methods.values()), wanted=wanted)
    return lists.ListRead.of(page, bodies.MethodRead.model_validate)


@router.post("/methods/rank", operation_id="rank_methods")
def rank(
    request: ranking.MethodsRequest, caller: CallerDep, sessions: SessionsDep
) -> bodies.MethodsRanked:
    """List every method for a job without its method: those that fit first.

    The best measured come first, and of those that fit the ones that did harm come last.

    Nothing is stored. A method fits if a job with it and its default hyper-parameters would be
    accepted; the others say why not.
    """
    with sessions.begin() as session:
        ranked = ranking.rank(session, project_id=caller.project_id, request=request)
    return bodies.MethodsRanked.of(ranked, request.task)


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
