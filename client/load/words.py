"""Common English words that are one token each, with the space before them, in the vocabularies in general use."""

from __future__ import annotations

_TEXT = """
about above across action after again against age agree air all almost alone along already also always among
amount and animal another answer any appear area arm around arrive art ask away back bad bank base beat beauty
because become bed before began behind believe best better between big bird black blood blue board boat body book
born both box boy break bring brother brought brown build built burn business busy but buy call came can capital
car card care carry case cat catch cause center century certain chair chance change character charge chief child
children choose church circle city claim class clean clear climb clock close cloth cloud coast cold color come
common company compare complete condition contain continue control cook cool copy corn corner correct cost could
count country course cover create cross crowd cry current cut dance danger dark daughter day dead deal dear death
decide deep degree depend describe desert design develop did die differ difficult direct discuss distance divide
do doctor dog dollar done door double down draw dream dress drink drive drop dry during each early earth east easy
eat edge effect egg eight either electric element else end enemy energy engine enjoy enough enter equal especially
even evening event ever every example except exercise expect experience experiment explain express eye face fact
fair fall family famous far farm fast fat father favor fear feed feel feet fell few field fight figure fill final
find fine finger finish fire first fish fit five flat floor flow flower fly follow food foot for force foreign
forest form forward found four free fresh friend from front fruit full fun game garden gas gather gave general
gentle get girl give glad glass go gold gone good got govern grand grass gray great green grew ground group grow
guess guide gun had hair half hand happen happy hard has hat have he head hear heart heat heavy held help her here
high hill him his history hit hold hole home hope horse hot hour house how huge human hundred hunt hurry ice idea
if imagine in include increase industry instrument interest into iron island it job join just keep kept key kill
kind king knew know lady lake land language large last late laugh law lay lead learn least leave led left leg
length less let letter level lie life lift light like line list listen little live long look lost lot loud love
low machine made main major make man many map mark market mass master match material matter may mean meant measure
meat meet member men metal method middle might mile milk million mind minute miss modern moment money month moon
more morning most mother motion mount mountain mouth move much music must my name nation natural nature near
necessary neck need never new next night nine no noise noon nor north nose note nothing notice now number object
observe ocean of off offer office often oil old on once one only open operate opposite or order original other our
out over own oxygen page paint pair paper paragraph parent part particular party pass past path pattern pay people
perhaps period person phrase pick picture piece place plain plan plane planet plant play please point poor
populate port pose position possible post pound power practice prepare present press pretty print probable problem
process produce product proper property protect prove provide pull push put question quick quiet quite race radio
rail rain raise ran range rate rather reach read ready real reason receive record red region remember repeat reply
represent require rest result rich ride right ring rise river road rock roll room root rope rose round row rule
run safe said sail salt same sand sat save saw say scale school science score sea search season seat second
section see seed seem self sell send sense sent sentence separate serve set settle seven several shall shape share
sharp she ship shoe shop short should shoulder shout show side sight sign silent silver similar simple since sing
single sister sit six size skill skin sky sleep slip slow small smell smile snow so social soft soil soldier
solution solve some son song soon sound south space speak special speech speed spend spoke spot spread spring
square stand star start state station stay steam steel step stick still stone stood stop store story straight
strange stream street stretch string strong student study subject substance such sudden sugar suggest suit summer
sun supply support sure surface surprise symbol system table tail take talk tall teach team tell ten term test
than thank that the their them then there these they thick thin thing think third this those though thought
thousand three through throw thus time to together told tone too took tool top total touch toward town track trade
train travel tree triangle trip trouble truck true try tube turn twenty two type under unit until up us use usual
valley value vary very view village visit voice vowel wait walk wall want war warm was wash watch water wave way
we wear weather week weight well went were west what wheel when where whether which while white who whole whose
why wide wife wild will win wind window winter wire wish with woman women wonder wood word work world would write
written wrong year yellow yes yet you young your
"""
WORDS = tuple(_TEXT.split())
