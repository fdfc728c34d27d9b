"""The sites: enrolment, certificates, authentication, rosters, reports."""
