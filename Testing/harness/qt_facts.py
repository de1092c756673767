"""Where Qt through PythonQt on Qt 5.15 differs from PySide6: names that one has and the other has not."""

from __future__ import annotations

import functools
import re

# The classes that tests may use as qt.<name>; whoever needs another one looks that PythonQt has it and adds it here.
_CLASSES = (
    "Qt QObject QEvent QTimer QUrl QSize QRect QPoint QPointF QRectF QFile QFileInfo QDir QIODevice QLocale QDate",
    "QDateTime QSettings QSysInfo QStandardPaths QElapsedTimer QProcess QProcessEnvironment QByteArray QModelIndex",
    "QItemSelectionModel QMargins QSortFilterProxyModel QIcon QPixmap QImage QPainter QPainterPath QPen QBrush",
    "QColor QFont QFontMetrics QPalette QDesktopServices QCursor QKeySequence QGuiApplication QTextCursor QAction",
    "QActionGroup QShortcut QStandardItem QStandardItemModel QPolygonF QDoubleValidator QIntValidator QClipboard",
    "QKeyEvent QMouseEvent QCloseEvent QPaintEvent QResizeEvent QApplication QWidget QLabel QPushButton QToolButton",
    "QRadioButton QButtonGroup QComboBox QLineEdit QSpinBox QDoubleSpinBox QSlider QCheckBox QTableWidget",
    "QTableWidgetItem QTableView QTreeWidget QTreeWidgetItem QListWidget QListWidgetItem QHeaderView QProgressBar",
    "QPlainTextEdit QTextEdit QTextBrowser QFrame QGroupBox QTabWidget QStackedWidget QScrollArea QSplitter QLayout",
    "QHBoxLayout QVBoxLayout QFormLayout QGridLayout QBoxLayout QSpacerItem QSizePolicy QMenu QMessageBox QFileDialog",
    "QInputDialog QDialog QDialogButtonBox QProgressDialog QAbstractItemView QAbstractButton QStyle QStyleFactory",
    "QToolTip QStyledItemDelegate QWidgetAction QMainWindow QStatusBar QCompleter QMimeData",
)
CLASSES = [name for line in _CLASSES for name in line.split()]

NOT_CONSTRUCTED = {"QApplication", "QGuiApplication", "QCoreApplication"}

# Functions of PySide6 that PythonQt's wrappers for Qt 5.15 lack: newer ones, and ones that it does not wrap.
MISSING = {
    "QObject": "connectNotify disconnectNotify isQuickItemType receivers isSignalConnected childEvent customEvent",
    "QWidget": "create destroy devType encodeMetricF find initPainter internalWinId isTopLevel metric paintEngine "
    "redirected screen setScreen sharedPainter topLevelWidget nativeEvent windowHandle getSafeWindow",
    "QSpinBox": "fixup setStepType stepType",
    "QDoubleSpinBox": "fixup setStepType stepType",
    "QAbstractItemView": "initViewItemOption itemDelegateForIndex",
    "QHeaderView": "isSortIndicatorClearable setSortIndicatorClearable",
    "QTextEdit": "toMarkdown",
    "QTextBrowser": "doSetSource sourceType",
    "QLayout": "controlTypes getContentsMargins unsetContentsMargins",
    "QFormLayout": "isRowVisible setRowVisible takeRow",
    "QGridLayout": "getItemPosition",
    "QTimer": "id killTimer",
    "QMenu": "menuInAction",
    "QAction": "associatedObjects",
    "QMessageBox": "buttonText setButtonText options setOption setOptions testOption standardIcon",
    "QFileDialog": "saveFileContent",
    "QIcon": "fallbackThemeName setFallbackThemeName",
    "QPixmap": "deviceIndependentSize fromImageInPlace",
    "QPainter": "drawPointsNp",
    "QColor": "fromString getCmyk getCmykF getHsv getHsvF getRgb getRgbF isValidColorName toExtendedRgb toTuple",
    "QSize": "grownBy shrunkBy toSizeF toTuple",
    "QFont": "clearFeatures clearVariableAxes families featureTags setFamilies setFeature setVariableAxis",
    "QPalette": "accent placeholderText",
    "QComboBox": "setLabelDrawingMode labelDrawingMode",
}
NO_PROPERTIES = {("QTimer", "singleShot")}
NEW_PROPERTIES = {"labelDrawingMode", "sortIndicatorClearable", "stepType", "enabledSections"}
NEW_SIGNALS = {"checkStateChanged", "sortIndicatorClearableChanged", "updateThresholdChanged", "timeoutChanged"}

# PySide6 has no type for VTK's objects; it passes them as Python objects.
VTK_POINTER = re.compile(r"vtk\w+\*")

_MISSING = {name: frozenset(text.split()) for name, text in MISSING.items()}


@functools.cache
def is_offered(native: type, name: str) -> bool:
    """Tell whether PythonQt has this function of a class, in so far as PySide6 has it."""
    return not any(name in _MISSING.get(cls.__name__, ()) for cls in native.__mro__)
