"""Whose weights the self-teacher has: initial, moving average, live, trust region."""

from selfdistill.teachers.parts import Initial, Live, MovingAverage, NoTeacher, Teacher, TrustRegion
from selfdistill.teachers.self_teacher import SelfTeacher, TeacherScores, start_teacher

__all__ = [
    "Initial",
    "Live",
    "MovingAverage",
    "NoTeacher",
    "SelfTeacher",
    "Teacher",
    "TeacherScores",
    "TrustRegion",
    "start_teacher",
]
