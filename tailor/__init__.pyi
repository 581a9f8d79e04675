from tailor.api import Evaluation as Evaluation
from tailor.api import LoadedRecipe as LoadedRecipe
from tailor.api import Run as Run
from tailor.api import load as load
from tailor.errors import TailorError as TailorError

__version__: str
