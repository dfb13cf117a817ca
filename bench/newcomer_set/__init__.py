"""The newcomer's set: pictures and questions as a person has them who meets the model first."""
